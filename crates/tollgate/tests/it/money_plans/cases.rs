//! The statements that are looked at, and with what arguments.

use tollgate_domain::Role;

use crate::queue_plans::statements::{Case, id, list};

/// Whose statements are looked at, but for those named below.
pub(super) const TABLES: [&str; 5] =
    ["stripe_", "app.credits_ledger", "app.credit_balances", "app.ledger_sums", "app.key_spending"];

pub(super) const NOT_LOOKED_AT: [(&str, &str); 5] = [
    ("INSERT INTO app.accounts", "opens an account"),
    ("FROM app.accounts a JOIN", "every account, for an operator"),
    ("coalesce(sum(credits_held), 0)", "an account's whole ledger, for an operator"),
    ("UPDATE app.api_keys", "a key's own statements"),
    ("app.submit(", "a function"),
];

const BATCH: i64 = 50;

/// The account, and a number's own id.
fn me(rest: &str) -> String {
    format!("'{}'{}{rest}", id(0), if rest.is_empty() { "" } else { ", " })
}

/// Of jobs that run.
fn jobs() -> String {
    list((0..BATCH).map(|nr| id(nr * 2 + 1)))
}

fn entries() -> String {
    list((0..BATCH).map(|nr| id(10_000_000 + nr)))
}

#[rustfmt::skip]
pub(super) const CASES: &[Case] = &[
    Case { name: "post", text: "WITH before AS MATERIALIZED", role: Role::Operator, indexes: &["credit_balances_pkey"], batch: 1,
        arguments: |_| me(&format!("'{}', 5, 'adjustment', NULL", id(10_000_000))) },
    Case { name: "refund", text: "AS asked (id, entry)", role: Role::Worker, batch: BATCH,
        indexes: &["jobs_pkey", "api_keys_pkey", "key_spending_pkey", "credit_balances_pkey"],
        arguments: |_| me(&format!("{}, {}, 'refund'", jobs(), entries())) },
    Case { name: "mark_succeeded", text: "credits_charged = $4", role: Role::Worker, batch: 1,
        indexes: &["jobs_pkey", "api_keys_pkey", "key_spending_pkey", "credit_balances_pkey"],
        arguments: |_| me(&format!("'{}', '{}', 1, 'succeeded', 'job.completed', 'confirm'", id(7), id(10_000_000))) },
    Case { name: "reopen_failed", text: "SET status = 'queued', attempts = 0", role: Role::Operator, batch: 1,
        indexes: &["credit_balances_pkey"],
        arguments: |_| me(&format!("'{}', 'job.redriven', '{}', 'reservation'", id(8), id(10_000_000))) },
    Case { name: "balance", text: "SELECT posted, held, owed FROM app.credit_balances WHERE account_id = $1", role: Role::Api,
        indexes: &["credit_balances_pkey"], batch: 1, arguments: |_| me("") },
    Case { name: "ledger_page", text: "SELECT id, reason, delta, held", role: Role::Api, indexes: &["credits_ledger_pkey"],
        batch: BATCH, arguments: |rows| me(&format!("'{}', {BATCH}", id(rows))) },
    Case { name: "add_sums", text: "INSERT INTO app.ledger_sums", role: Role::Worker, indexes: &[], batch: 1,
        arguments: |_| me("") },
    Case { name: "lock_sums", text: "SELECT until FROM app.ledger_sums", role: Role::Worker, indexes: &["ledger_sums_pkey"],
        batch: 1, arguments: |_| me("") },
    Case { name: "advance_sums", text: "UPDATE app.ledger_sums s", role: Role::Worker, batch: BATCH,
        indexes: &["credits_ledger_pkey", "ledger_sums_pkey"],
        arguments: |rows| me(&format!("'{}', '{}', {BATCH}", id(rows / 2), id(rows))) },
    Case { name: "books", text: "sum_delta + l.delta", role: Role::Worker, batch: 1,
        indexes: &["credits_ledger_pkey", "ledger_sums_pkey", "credit_balances_pkey"], arguments: |_| me("") },
    Case { name: "remove_spending", text: "DELETE FROM app.key_spending", role: Role::Worker, indexes: &["key_spending_pkey"],
        batch: BATCH, arguments: |_| me(&BATCH.to_string()) },
    Case { name: "lock_balance", text: "SELECT posted FROM app.credit_balances", role: Role::Worker,
        indexes: &["credit_balances_pkey"], batch: 1, arguments: |_| me("") },
    Case { name: "add_event", text: "INSERT INTO app.stripe_events", role: Role::Worker, indexes: &[], batch: 1,
        arguments: |_| me("'evt_new', 'x', 1") },
    Case { name: "add_customer", text: "INSERT INTO app.stripe_customers", role: Role::Worker, indexes: &[], batch: 1,
        arguments: |_| me("'cus_new'") },
    Case { name: "add_grant", text: "INSERT INTO app.stripe_grants", role: Role::Worker, indexes: &[], batch: 1,
        arguments: |_| me("'cs_new', 1, 'usd', 1") },
    Case { name: "add_payments", text: "INSERT INTO app.stripe_payments", role: Role::Worker, indexes: &[], batch: 1,
        arguments: |_| me("'{pi_new}', 'cs_1'") },
    Case { name: "add_reversal", text: "INSERT INTO app.stripe_reversals", role: Role::Worker, indexes: &[], batch: 1,
        arguments: |_| me("'pi_1', 'ch_1', 1, true, false, 'usd'") },
    Case { name: "purchases_of", text: "SELECT object_id FROM app.stripe_payments", role: Role::Worker,
        indexes: &["stripe_payments_pkey"], batch: 1, arguments: |_| me("'pi_1'") },
    Case { name: "grant_of", text: "SELECT amount, currency, credits", role: Role::Worker, indexes: &["stripe_grants_pkey"],
        batch: 1, arguments: |_| me("'cs_1'") },
    Case { name: "reversals_of", text: "FROM app.stripe_payments p, LATERAL", role: Role::Worker, batch: 1,
        indexes: &["stripe_payments_by_object", "stripe_reversals_pkey"], arguments: |_| me("'cs_1'") },
    Case { name: "set_taken_back", text: "SET taken_back = $3", role: Role::Worker, indexes: &["stripe_grants_pkey"], batch: 1,
        arguments: |_| me("'cs_1', 0") },
    Case { name: "add_objects", text: "SELECT DISTINCT object_id, $2::uuid", role: Role::Api, indexes: &[], batch: 2,
        arguments: |_| format!("'{{obj_1,obj_2}}', '{}'", id(0)) },
    Case { name: "add_to_inbox", text: "INSERT INTO billing.stripe_events", role: Role::Api, indexes: &[], batch: 1,
        arguments: |_| format!("'evt_new', '{}', 'x', now(), true, NULL, NULL, 'ignored', '{{}}'", id(10_000_000)) },
    Case { name: "add_waiting", text: "INSERT INTO billing.stripe_waiting", role: Role::Api, indexes: &[], batch: 1,
        arguments: |_| "'evt_new', '{obj_1}'".into() },
    Case { name: "adopt", text: "SELECT DISTINCT w.event_id", role: Role::Worker, batch: 2,
        indexes: &["stripe_waiting_pkey", "stripe_waiting_by_event", "stripe_events_pkey"],
        arguments: |_| me("'{obj_2,obj_6}'") },
    Case { name: "stripe_event", text: "SELECT event_id, payload", role: Role::Worker, indexes: &["stripe_events_id_key"],
        batch: 1, arguments: |_| format!("'{}'", id(3)) },
    Case { name: "mark_event", text: "SET state = $2, error = $3", role: Role::Worker, indexes: &["stripe_events_id_key"],
        batch: 1, arguments: |_| format!("'{}', 'processed', NULL", id(3)) },
    Case { name: "linked", text: "SELECT account_id FROM billing.stripe_objects", role: Role::Operator,
        indexes: &["stripe_objects_pkey"], batch: 1, arguments: |_| "'obj_1'".into() },
    Case { name: "add_link", text: "DO UPDATE SET account_id = excluded.account_id", role: Role::Operator, indexes: &[],
        batch: 1, arguments: |_| format!("'obj_1', '{}'", id(0)) },
    Case { name: "inbox_page", text: "FROM billing.stripe_events WHERE state >= $1", role: Role::Operator,
        indexes: &["stripe_events_by_state"], batch: BATCH,
        arguments: |rows| format!("'processed', '{}', {BATCH}", id(rows)) },
    Case { name: "inbox_page_of_all", text: "FROM billing.stripe_events WHERE id < $1", role: Role::Operator,
        indexes: &["stripe_events_id_key"], batch: BATCH, arguments: |rows| format!("'{}', {BATCH}", id(rows)) },
    Case { name: "remove_events", text: "DELETE FROM billing.stripe_events", role: Role::Worker,
        indexes: &["stripe_events_by_state"], batch: BATCH * 2,
        arguments: |rows| format!("'{{processed,ignored,resolved}}', '{}', {BATCH}", id(rows / 2)) },
    Case { name: "named_event", text: "SELECT id, account_id, state", role: Role::Operator, indexes: &["stripe_events_pkey"],
        batch: 1, arguments: |_| "'evt_2'".into() },
    Case { name: "resolve_event", text: "SET state = 'resolved'", role: Role::Operator, batch: 1,
        indexes: &["stripe_waiting_by_event", "stripe_events_pkey", "tasks_pkey"],
        arguments: |_| "'evt_3', 'needs_attention'".into() },
];

/// What a foreign key is checked for: from jobs to their images, from images to their bytes, and back.
pub(super) fn keys() -> Vec<String> {
    let (me, new) = (id(0), id(10_000_000));
    let (job, image) = (id(2), id(1));
    vec![
        format!("INSERT INTO app.job_images (account_id, job_id, image_id) VALUES ('{me}', '{job}', '{image}')"),
        format!(
            "INSERT INTO app.images (account_id, id, job_id, content_key, prompt_hash, model, size, url, media_type,
                                     byte_length, sha256, storage)
             VALUES ('{me}', '{new}', '{job}', 'new', '', 'm', 's', 'u', 'image/png', 1, '', 'database');
             INSERT INTO app.image_data (account_id, image_id, data) VALUES ('{me}', '{new}', '')"
        ),
        format!(
            "DELETE FROM app.image_data WHERE account_id = '{me}' AND image_id = '{0}';
             DELETE FROM app.images WHERE account_id = '{me}' AND id = '{0}'",
            id(3)
        ),
        format!("DELETE FROM app.jobs WHERE account_id = '{me}' AND status = 'failed' AND id = '{job}'"),
    ]
}
