//! Every SQL statement, and the migrations.
//!
//! Plain functions, one intent each, over a [`TenantTx`] (account set, row-level security on) or a [`SystemTx`] (the
//! queue, across accounts). No storage traits: there is one database, and its SQL is meant to be read. Statements
//! are checked against the schema when they are compiled; the answers are kept in `.sqlx` (`make sqlx`).
//!
//! **Architecture invariant:** nothing here decides anything; it stores, and reports how many rows it touched.

mod accounts;
mod audit;
mod connect;
mod credits;
mod dead_letters;
mod guard;
mod idempotency;
mod images;
mod jobs;
mod keys;
mod lanes;
mod legacy;
mod migrate;
mod prices;
mod rate_limits;
mod reconcile;
mod retention;
mod stripe;
mod submit;
mod tasks;
mod tx;
mod wake;
mod workers;

pub use accounts::{accounts_after, insert_account, list_accounts};
pub use audit::{audit_page, insert_audit, insert_operators_audit, operators_audit_page};
pub use connect::{ConnectError, Role, connect, drop_broken, probe};
pub use credits::{balance, grant, ledger_page, refund};
pub use dead_letters::{
    LockedLetter, count_dead_letters, count_dead_letters_by_id, dead_letter, dead_letters_page,
    delete_dead_letter, delete_dead_letters, lock_dead_letters, lock_dead_letters_by_id, redrive,
    reopen_failed,
};
pub use guard::{
    ClassRow, add_latencies, breaker_enabled, class_state, forget_latencies, latencies, lock_class,
    save_class, switch_breaker,
};
pub use idempotency::{Claim, claim_once, look_once, remove_expired_answers, save_answer};
pub use images::{
    NewImage, NewPlace, Place, StoredImage, image_by_id, image_data, images_page, insert_image, lock_images,
    remove_unused_images,
};
pub use jobs::{
    StartedJob, events_after, insert_result, job_by_id, jobs_page, mark_cancelled, mark_failed,
    mark_requeued, mark_retrying, mark_running, mark_succeeded,
};
pub use keys::{
    KeyCandidate, KeyToInsert, end_key, find_key, insert_key, list_keys, lock_key, mark_used,
    remove_spending, revoke_key,
};
pub use lanes::{
    LaneSettings, awake_lanes, change_settings, lane_counts, lane_settings, lock_lanes, put_to_sleep,
    queue_counts, queue_states, set_lane, set_queue,
};
pub use legacy::{LegacyError, Mended};
pub use migrate::{MigrateError, Migrated, migrate, schema_is_current};
pub use prices::{insert_price, prices};
pub use rate_limits::{count_requests, remove_rate_windows};
pub use reconcile::{Books, advance_sums, all_books, books};
pub use retention::{Batch, remove_ended_jobs};
pub use sqlx::{Error, PgPool};
pub use stripe::{
    NamedEvent, NewEvent, StoredEvent, StoredGrant, StoredReversal, add_customer, add_event, add_grant,
    add_payments, adopt, enter_event, grant_of, inbox_page, join_reversal, link, linked, lock_balance,
    mark_event, named_event, purchases_of, remove_events, resolve_event, reversals_of, set_taken_back,
    stripe_event, tell, wait_for,
};
pub use submit::{NewJob, SubmitTerms, Submitted, submit, waits_for_its_key};
pub use tasks::{
    LaneRoom, NewTask, bury, bury_expired, bury_unleased, claim, delete_task, due_in, enqueue, enqueue_all,
    finish, finish_all, hold_counts, lock_caps, lock_dead_worker, open_lane, orphan_workers, promote_due,
    release, retry_at, take_back, take_cap, wake_lanes_with_work,
};
pub use tx::{Alone, SystemTx, TenantTx, Tx};
pub use wake::{IdleSign, Signal, Wakeups, notify_cancelled, notify_guard, notify_ready};
pub use workers::{deregister, heartbeat, held_leases, last_token, register, remove_dead};

/// What a store function returns.
pub type Result<T> = std::result::Result<T, sqlx::Error>;
