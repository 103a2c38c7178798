//! Stripe's events before and after it is known whose they are.

use chrono::{DateTime, Utc};
use serde_json::value::RawValue;
use sqlx::types::Json;
use tollgate_model::account::AccountId;
use tollgate_model::stripe::inbox::{EventState, InboxEvent};
use uuid::Uuid;

use crate::tx::Tx;
use crate::{Alone, Result, SystemTx, TenantTx};

/// An event that has come.
#[derive(Debug, Clone, Copy)]
pub struct NewEvent<'a> {
    /// Ours, and its task's.
    pub id: Uuid,
    /// Stripe's.
    pub event_id: &'a str,
    /// Stripe's name for what happened.
    pub event_type: &'a str,
    /// When it happened.
    pub created: DateTime<Utc>,
    /// `false`: of the test mode.
    pub livemode: bool,
    /// The customer it names.
    pub customer: Option<&'a str>,
    /// Whose it is.
    pub account: Option<AccountId>,
    /// What is to become of it.
    pub state: EventState,
    /// As it came.
    pub payload: &'a RawValue,
}

/// Says that these objects of Stripe's are this account's, unless it is known whose they are; or, without one, asks. Returns
/// whose each is, in their own order. The rows stay locked until the end of the transaction: who waits for an account and who
/// tells it take turns, in the order of the objects.
pub async fn tell(
    tx: &mut impl Tx,
    objects: &[&str],
    account: Option<AccountId>,
) -> Result<Vec<(String, Option<AccountId>)>> {
    sqlx::query!(
        "INSERT INTO billing.stripe_objects AS o (object_id, account_id)
         SELECT DISTINCT object_id, $2::uuid FROM unnest($1::text[]) AS told (object_id) ORDER BY object_id
         ON CONFLICT (object_id) DO UPDATE SET account_id = coalesce(o.account_id, excluded.account_id)
         RETURNING object_id, account_id",
        objects as _,
        account.map(|account| account.0),
    )
    .map(|row| (row.object_id, row.account_id.map(AccountId)))
    .fetch_all(tx.connection())
    .await
}

/// Takes an event in. `false`: it has come before.
pub async fn enter_event(tx: &mut impl Tx, event: NewEvent<'_>) -> Result<bool> {
    // No column is named behind ON CONFLICT: to look at one, the API would need the right to read events. The payload goes as
    // text, since the driver's own way is by jsonb, which writes it anew.
    let done = sqlx::query!(
        "INSERT INTO billing.stripe_events
             (event_id, id, type, created, livemode, customer, account_id, state, payload)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9::text::json) ON CONFLICT DO NOTHING",
        event.event_id,
        event.id,
        event.event_type,
        event.created,
        event.livemode,
        event.customer,
        event.account.map(|account| account.0),
        event.state.as_str(),
        event.payload.get(),
    )
    .execute(tx.connection())
    .await?;
    Ok(done.rows_affected() == 1)
}

/// The event waits to be told whose one of these objects is.
pub async fn wait_for(tx: &mut impl Tx, event_id: &str, objects: &[&str]) -> Result<()> {
    sqlx::query!(
        "INSERT INTO billing.stripe_waiting (object_id, event_id)
         SELECT DISTINCT object_id, $1 FROM unnest($2::text[]) AS known_by (object_id)",
        event_id,
        objects as _,
    )
    .execute(tx.connection())
    .await?;
    Ok(())
}

/// The events that have waited for one of these objects are the account's from here on. Returns each event's own id, and
/// Stripe's name for what happened.
pub async fn adopt(tx: &mut TenantTx, objects: &[&str]) -> Result<Vec<(Uuid, String)>> {
    let account = tx.account().0;
    // IS TRUE, so that no plan looks for all events in these states.
    sqlx::query!(
        "WITH waiting AS MATERIALIZED (
             SELECT DISTINCT w.event_id
             FROM unnest($2::text[]) AS known (object_id),
                  LATERAL (SELECT event_id FROM billing.stripe_waiting
                           WHERE object_id = known.object_id ORDER BY event_id OFFSET 0) AS w
         ), gone AS (
             DELETE FROM billing.stripe_waiting WHERE ctid = ANY (ARRAY(
                 SELECT own.row FROM waiting,
                        LATERAL (SELECT s.ctid AS row FROM billing.stripe_waiting s
                                 WHERE s.event_id = waiting.event_id ORDER BY s.event_id OFFSET 0) AS own))
         )
         UPDATE billing.stripe_events e SET account_id = $1, state = 'received', error = NULL
         FROM waiting
         WHERE e.event_id = waiting.event_id AND (e.state IN ('unknown_customer', 'unknown_payment')) IS TRUE
         RETURNING e.id, e.type",
        account,
        objects as _,
    )
    .map(|row| (row.id, row.r#type))
    .fetch_all(tx.conn())
    .await
}

/// An event as it was taken in.
#[derive(Debug, Clone)]
pub struct StoredEvent {
    /// Stripe's id.
    pub event_id: String,
    /// As it came.
    pub payload: Box<RawValue>,
}

/// The event that a task stands for.
pub async fn stripe_event(tx: &mut TenantTx, id: Uuid) -> Result<Option<StoredEvent>> {
    sqlx::query!(
        r#"SELECT event_id, payload AS "payload: Json<Box<RawValue>>" FROM billing.stripe_events WHERE id = $1"#,
        id,
    )
    .map(|row| StoredEvent { event_id: row.event_id, payload: row.payload.0 })
    .fetch_optional(tx.conn())
    .await
}

/// What has become of an event.
pub async fn mark_event(tx: &mut TenantTx, id: Uuid, state: EventState, error: Option<&str>) -> Result<()> {
    sqlx::query!(
        "UPDATE billing.stripe_events SET state = $2, error = $3 WHERE id = $1",
        id,
        state.as_str(),
        error,
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// An event as whoever resolves it has to know it.
#[derive(Debug, Clone, Copy)]
pub struct NamedEvent {
    /// Ours, and its task's.
    pub id: Uuid,
    /// Whose it is, once that is known.
    pub account: Option<AccountId>,
    /// What has become of it.
    pub state: EventState,
}

/// The event that Stripe calls so.
pub async fn named_event(tx: &mut SystemTx, event_id: &str) -> Result<Option<NamedEvent>> {
    sqlx::query!("SELECT id, account_id, state FROM billing.stripe_events WHERE event_id = $1", event_id)
        .map(|row| NamedEvent {
            id: row.id,
            account: row.account_id.map(AccountId),
            // One that this build does not know is another's to end.
            state: row.state.parse().unwrap_or(EventState::Received),
        })
        .fetch_optional(tx.conn())
        .await
}

/// Nothing more comes of the event, and it waits for nothing. `false`: it is not in this state any more, or in the queue.
pub async fn resolve_event(tx: &mut SystemTx, event_id: &str, from: EventState) -> Result<bool> {
    // IS TRUE as in `adopt`.
    let done = sqlx::query!(
        "WITH gone AS (
             DELETE FROM billing.stripe_waiting WHERE ctid = ANY (ARRAY(
                 SELECT s.ctid FROM billing.stripe_waiting s WHERE s.event_id = $1 ORDER BY s.event_id))
         )
         UPDATE billing.stripe_events e SET state = 'resolved'
         WHERE e.event_id = $1 AND (e.state = $2) IS TRUE
           AND NOT EXISTS (SELECT FROM queue.tasks t WHERE t.account_id = e.account_id AND t.id = e.id)",
        event_id,
        from.as_str(),
    )
    .execute(tx.conn())
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Removes up to `limit` events of each of these states that came before the one at `before` would have: their payloads hold
/// what is known of people. Returns how many. The state is a bound, as in [`inbox_page`].
pub async fn remove_events(
    alone: &mut Alone,
    states: &[EventState],
    before: Uuid,
    limit: i64,
) -> Result<u64> {
    let states: Vec<&str> = states.iter().map(|state| state.as_str()).collect();
    let done = sqlx::query!(
        "DELETE FROM billing.stripe_events WHERE ctid = ANY (ARRAY(
             SELECT old.row FROM unnest($1::text[]) AS handled (state),
                    LATERAL (SELECT e.ctid AS row FROM billing.stripe_events e
                             WHERE e.state >= handled.state AND (e.state, e.id) < (handled.state, $2)
                             ORDER BY e.state, e.id LIMIT $3 FOR UPDATE SKIP LOCKED) AS old))",
        &states as _,
        before,
        limit,
    )
    .execute(alone.connection())
    .await?;
    Ok(done.rows_affected())
}

/// Whose the object is; `None`: nobody knows.
pub async fn linked(tx: &mut TenantTx, object: &str) -> Result<Option<AccountId>> {
    let account =
        sqlx::query_scalar!("SELECT account_id FROM billing.stripe_objects WHERE object_id = $1", object)
            .fetch_optional(tx.conn())
            .await?;
    Ok(account.flatten().map(AccountId))
}

/// Says that an object is the transaction's account's, whoever's it was. The row stays locked, as by [`tell`].
pub async fn link(tx: &mut TenantTx, object: &str) -> Result<()> {
    let account = tx.account().0;
    sqlx::query!(
        "INSERT INTO billing.stripe_objects (object_id, account_id) VALUES ($1, $2)
         ON CONFLICT (object_id) DO UPDATE SET account_id = excluded.account_id",
        object,
        account,
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Events, newest first: up to `limit` of those that came before `before`, in one state or in any. To each its walk along
/// an index of its own: the state is said as a bound, since a plan that knew it as one value would walk along all events'
/// ids and look for it.
pub async fn inbox_page(
    alone: &mut Alone,
    state: Option<EventState>,
    before: Option<Uuid>,
    limit: i64,
) -> Result<Vec<InboxEvent>> {
    let before = before.unwrap_or(Uuid::max());
    let rows = match state {
        Some(state) => {
            sqlx::query_as!(
                EventRow,
                "SELECT id, event_id, type AS event_type, created, received_at, livemode, state, account_id, customer, error
                 FROM billing.stripe_events WHERE state >= $1 AND (state, id) < ($1, $2)
                 ORDER BY state DESC, id DESC LIMIT $3",
                state.as_str(),
                before,
                limit,
            )
            .fetch_all(alone.connection())
            .await?
        }
        None => {
            sqlx::query_as!(
                EventRow,
                "SELECT id, event_id, type AS event_type, created, received_at, livemode, state, account_id, customer, error
                 FROM billing.stripe_events WHERE id < $1 ORDER BY id DESC LIMIT $2",
                before,
                limit,
            )
            .fetch_all(alone.connection())
            .await?
        }
    };
    Ok(rows.into_iter().map(InboxEvent::from).collect())
}

struct EventRow {
    id: Uuid,
    event_id: String,
    event_type: String,
    created: DateTime<Utc>,
    received_at: DateTime<Utc>,
    livemode: bool,
    state: String,
    account_id: Option<Uuid>,
    customer: Option<String>,
    error: Option<String>,
}

impl From<EventRow> for InboxEvent {
    fn from(row: EventRow) -> Self {
        let EventRow {
            id,
            event_id,
            event_type,
            created,
            received_at,
            livemode,
            state,
            account_id,
            customer,
            error,
        } = row;
        let account_id = account_id.map(AccountId);
        Self { id, event_id, event_type, created, received_at, livemode, state, account_id, customer, error }
    }
}
