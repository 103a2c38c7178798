//! What there is, as the rules see it, and what is allowed by name.

/// What the rules speak of. `account` is the number of a table's column account_id.
pub(super) const CATALOGUE: &str = r#"
WITH schemas AS (
    SELECT oid, nspname AS schema FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
), relations AS (
    SELECT c.*, s.schema, s.schema || '.' || c.relname AS name FROM pg_class c JOIN schemas s ON s.oid = c.relnamespace
), functions AS (
    SELECT p.*, s.schema, p.oid::regprocedure::text AS name FROM pg_proc p JOIN schemas s ON s.oid = p.pronamespace
), tables AS (
    SELECT r.*, a.attnum AS account, a.attnotnull AND a.atttypid = 'uuid'::regtype AS account_ok
    FROM relations r LEFT JOIN pg_attribute a ON a.attrelid = r.oid AND a.attname = 'account_id' AND NOT a.attisdropped
    WHERE r.schema IN ('app', 'queue', 'guard', 'billing') AND r.relkind IN ('r', 'p')
), tenant AS (
    -- In billing stands whose something is; it is the platform's own all the same.
    SELECT * FROM tables WHERE schema = 'app' OR account IS NOT NULL AND schema <> 'billing'
), roles AS (
    SELECT * FROM pg_roles WHERE rolname IN ('app_api', 'app_worker', 'app_operator', 'app_migrator')
), runtime AS (
    -- A superuser may do everything; the rule about roles names it, once.
    SELECT * FROM roles WHERE rolname <> 'app_migrator' AND NOT rolsuper
), policies AS (
    SELECT t.schema, t.name, p.polname, p.polcmd, p.polpermissive, array_to_string(p.polroles::regrole[], ',') AS roles,
           replace(pg_get_expr(p.polqual, p.polrelid), ' AS "nullif"', '') AS seen,
           replace(pg_get_expr(p.polwithcheck, p.polrelid), ' AS "nullif"', '') AS written
    FROM pg_policy p JOIN tables t ON t.oid = p.polrelid
), walls AS (
    -- The one form of a tenant's wall: the account is an InitPlan, read once a statement; '' is no account.
    SELECT * FROM policies
    WHERE polcmd = '*' AND polpermissive AND seen = written AND seen = '(account_id = ( SELECT '
          || '(NULLIF(current_setting(''app.account_id''::text, true), ''''::text))::uuid))'
), batch (seen) AS (VALUES
    -- The submissions of several accounts, together: their rows, and what of them a submission needs.
    ('(account_id = ANY (( SELECT (NULLIF(current_setting(''app.accounts''::text, true), ''''::text))::uuid[])::uuid[]))')
), allowed (name, polname, polcmd, roles, seen, written) AS (
    SELECT name, 'batch', cmd, 'app_api', CASE WHEN cmd <> 'a' THEN seen END, CASE WHEN cmd <> 'r' THEN seen END
    FROM batch, (VALUES ('app.api_keys', 'r'), ('app.jobs', 'a'), ('app.job_events', 'a'), ('app.credits_ledger', 'a'), ('app.credit_balances', '*'), ('app.idempotency_keys', '*'), ('app.key_spending', '*'), ('queue.tasks', 'a'), ('queue.lane_counts', '*')) AS may (name, cmd)
    UNION ALL VALUES
    -- Every other policy there may be.
    ('app.api_keys', 'holder', 'r', 'app_api',
     '(prefix = ( SELECT NULLIF(current_setting(''app.key_prefix''::text, true), ''''::text)))', NULL),
    ('app.accounts', 'operator', 'r', 'app_operator', 'true', NULL),
    ('app.credit_balances', 'operator', 'r', 'app_operator', 'true', NULL),
    ('app.image_audit', 'migrator', '*', 'app_migrator', 'true', 'true'),
    -- A worker and an operator see the queue whole. What a queue has as such is no account's.
    ('queue.workers', 'worker', '*', 'app_worker', 'true', 'true'),
    ('queue.tasks', 'worker', '*', 'app_worker', 'true', 'true'),
    ('queue.dead_letters', 'worker', '*', 'app_worker', 'true', 'true'),
    ('queue.queues', 'worker', '*', 'app_worker', 'true', 'true'),
    ('queue.lanes', 'worker', '*', 'app_worker', 'true', 'true'),
    ('queue.lane_counts', 'worker', '*', 'app_worker', 'true', 'true'),
    ('queue.workers', 'operator', '*', 'app_operator', 'true', 'true'),
    ('queue.tasks', 'operator', '*', 'app_operator', 'true', 'true'),
    ('queue.dead_letters', 'operator', '*', 'app_operator', 'true', 'true'),
    ('queue.queues', 'operator', '*', 'app_operator', 'true', 'true'),
    ('queue.lanes', 'operator', '*', 'app_operator', 'true', 'true'),
    ('queue.lane_counts', 'operator', '*', 'app_operator', 'true', 'true'),
    ('queue.audit_log', 'operator', '*', 'app_operator', 'true', 'true'),
    ('queue.queues', 'api', '*', 'app_api', 'true', 'true'),
    -- What is known of the providers is no account's either.
    ('guard.classes', 'worker', '*', 'app_worker', 'true', 'true'),
    ('guard.latencies', 'worker', '*', 'app_worker', 'true', 'true'),
    ('guard.switches', 'worker', '*', 'app_worker', 'true', 'true'),
    ('guard.classes', 'operator', '*', 'app_operator', 'true', 'true'),
    ('guard.latencies', 'operator', '*', 'app_operator', 'true', 'true'),
    ('guard.switches', 'operator', '*', 'app_operator', 'true', 'true'),
    ('guard.classes', 'api', 'r', 'app_api', 'true', NULL),
    ('guard.latencies', 'api', 'r', 'app_api', 'true', NULL),
    ('guard.switches', 'api', 'r', 'app_api', 'true', NULL),
    -- Nor are prices.
    ('billing.prices', 'operator', '*', 'app_operator', 'true', 'true'),
    ('billing.prices', 'api', 'r', 'app_api', 'true', NULL),
    -- Nor is what Stripe sends, before it is known whose it is. The API takes it in, and never sees it again.
    ('billing.stripe_events', 'worker', '*', 'app_worker', 'true', 'true'),
    ('billing.stripe_objects', 'worker', '*', 'app_worker', 'true', 'true'),
    ('billing.stripe_waiting', 'worker', '*', 'app_worker', 'true', 'true'),
    ('billing.stripe_events', 'operator', '*', 'app_operator', 'true', 'true'),
    ('billing.stripe_objects', 'operator', '*', 'app_operator', 'true', 'true'),
    ('billing.stripe_waiting', 'operator', '*', 'app_operator', 'true', 'true'),
    ('billing.stripe_events', 'api', 'a', 'app_api', NULL, 'true'),
    ('billing.stripe_objects', 'api', '*', 'app_api', 'true', 'true'),
    ('billing.stripe_waiting', 'api', 'a', 'app_api', NULL, 'true'),
    -- Whose rights queue.totals has.
    ('queue.lane_counts', 'totals', 'r', 'app_migrator', 'true', NULL),
    ('app.credit_balances', 'listed', 'r', 'app_migrator', 'true', NULL)
), definers (name, result, several, body) AS (VALUES
    -- Every function that may read more than its caller, word for word.
    ('queue.totals(text)', 'queued bigint, running bigint, done bigint, failed bigint', false,
     'SELECT coalesce(sum(queued), 0), coalesce(sum(running), 0), coalesce(sum(done), 0), coalesce(sum(failed), 0) '
     || 'FROM queue.lane_counts WHERE queue = wanted'),
    ('app.accounts_after(uuid,integer)', 'account_id uuid', true,
     'SELECT b.account_id FROM app.credit_balances b WHERE b.account_id > last ORDER BY b.account_id LIMIT most')
)"#;
